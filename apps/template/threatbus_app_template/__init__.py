"""Connects a tool to Threat Bus; the tool here is one that reads lines and looks for words."""
