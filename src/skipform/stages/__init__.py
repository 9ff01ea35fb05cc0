"""The commands of the command line, one file each: read the options, call the other rooms, write the files."""
