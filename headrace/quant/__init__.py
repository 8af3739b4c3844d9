"""One file per scheme: how a weight is packed, unpacked and multiplied."""
