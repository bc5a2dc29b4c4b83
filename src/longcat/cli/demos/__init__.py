"""The walkthroughs behind `longcat demo NAME`, one module each, named in `longcat.cli.demo`."""
