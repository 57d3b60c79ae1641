"""What every room needs: files and their checksums, locks, signals, names, options."""
