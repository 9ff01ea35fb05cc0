"""Training: an experiment file is read and checked, its runs are started, and each run is done in a folder."""
