"""Change the trained weights of finished arms without training, and measure the result as the arms were measured."""
