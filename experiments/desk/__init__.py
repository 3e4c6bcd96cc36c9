"""Follow what runs: how far runs, studies and measurements are, and a live view of them."""
