"""What others do for robust VAEs, on the same networks, data and budget."""
