"""The command `daskgmm`."""
