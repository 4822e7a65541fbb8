"""Teachers: the classifier of crops, a bigger detector, and how a frozen one runs fast."""
