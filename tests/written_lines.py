"""What lines of a journal have to hold beside what a test is about."""

EVALUATED = {
    "seconds": 1.0,
    "learning_rate": 0.1,
    "train_loss": 2.0,
    "train_accuracy": 0.5,
    "test_loss": 2.5,
    "test_accuracy": 0.25,
}
MEASURED = {"seconds": 1.0, "outputs": "trace"}
