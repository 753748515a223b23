"""What a result has to beat, computed from the same split."""
