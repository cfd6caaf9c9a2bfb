"""The files of one share, as descriptors. Nothing here knows a fid or a message."""
