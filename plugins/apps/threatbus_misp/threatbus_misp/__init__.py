"""The MISP app plugin of Threat Bus: indicators in, sightings out."""
