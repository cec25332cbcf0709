"""Why a score is what it is: errors by kind with their costs, and what AP would be without them."""
