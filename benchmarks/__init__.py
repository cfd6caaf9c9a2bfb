"""How fast uvmshare is, beside others: ``make bench``. Nothing of the package imports this."""
