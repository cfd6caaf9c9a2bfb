"""`uvmshare guest`: what runs inside a guest.

What lives here: only the way to `uvmshare.guest.mount`, which does the work, reads its own arguments
and also runs without this package.
"""
