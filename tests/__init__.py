from tests import shapes as shapes  # where jaxtyping's pytest plugin finds its checker
