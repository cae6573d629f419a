import pickle

from diffpolicy.errors import ArgumentError


def test_an_argument_error_reads_as_a_sentence_and_survives_pickling():
    error = pickle.loads(pickle.dumps(ArgumentError("name", "Ant-v9", "is not registered.")))
    assert isinstance(error, ValueError)
    assert str(error) == "name='Ant-v9' is not registered."
    assert (error.argument, error.value, error.problem) == ("name", "Ant-v9", "is not registered.")
