"""`shoal-broker status`: what a running broker tells about itself."""
