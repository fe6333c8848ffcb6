"""Speed and memory of daskgmm, side by side with its peers."""
