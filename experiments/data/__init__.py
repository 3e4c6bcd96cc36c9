"""Sources of data, their mixture, and the rows of token ids that every arm trains on."""
