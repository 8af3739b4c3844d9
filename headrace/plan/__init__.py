"""Says before anything is rented what fits, how fast it will be, what it costs and what to change."""
