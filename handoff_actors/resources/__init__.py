"""Who may use what: amounts, claims and their fair distribution, and where functions go."""
