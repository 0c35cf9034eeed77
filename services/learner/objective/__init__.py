"""What is minimised: rewards → advantages → loss. Pure functions, exact in float64."""
