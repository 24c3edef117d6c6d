"""Engine, judge and rewriter, and how parameters become them."""
