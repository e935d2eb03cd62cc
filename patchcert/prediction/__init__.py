"""Images in, the votes-to-be of all their views out."""
