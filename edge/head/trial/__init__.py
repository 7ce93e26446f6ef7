"""Another version of a model beside the one that answers: which frames it gets, what it says, and what is counted of it."""
