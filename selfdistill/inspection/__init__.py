"""What is in a data set: ``selfdistill inspect``."""
