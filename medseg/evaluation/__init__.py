"""How good a mask is: overlap, surface distance, and statistics over cases."""
