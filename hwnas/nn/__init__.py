"""Neural building blocks that generators and predictors share."""
