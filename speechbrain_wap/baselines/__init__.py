"""Other systems than the paper's, one file each."""
