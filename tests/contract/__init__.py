"""What every backbone must do; a backbone is done when it passes."""
