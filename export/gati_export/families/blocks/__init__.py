"""What families are built of: poolings, projections, selectors, and how they are trained and made small."""
