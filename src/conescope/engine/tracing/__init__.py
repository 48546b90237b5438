"""Call any model safely, and find out which of its parameters the layer rules may take."""
