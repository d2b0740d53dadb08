"""What is done to a mask after the network: pure array functions, and the same as transforms."""
