"""The exceptions of the engine, as one tree: each message is a sentence for the user who can mend its cause."""


class OpenFLAudioError(Exception):
    """Base of all exceptions that the engine raises on purpose."""


class AddressError(OpenFLAudioError, ValueError):
    """A host or port that nobody can be reached at."""


class SettingsError(OpenFLAudioError, ValueError):
    """A settings file is missing, unreadable, or says something that cannot be right."""


class FolderInUseError(OpenFLAudioError, ValueError):
    """A folder belongs to something with other settings; the message names the first difference."""


class CallEndedError(OpenFLAudioError, RuntimeError):
    """A call was ended from elsewhere. The message says why."""


class MessageTooLargeError(OpenFLAudioError, ValueError):
    """A message that is not whole yet, and larger than any that is taken."""


class TooManyCallsError(OpenFLAudioError, RuntimeError):
    """One certificate has as many calls open as it may."""


class EnvoyRefusedError(OpenFLAudioError, ValueError):
    """An envoy that may not register, or one nobody knows."""


class BrokenUploadError(OpenFLAudioError, RuntimeError):
    """An update that did not arrive whole."""


class SubmissionError(OpenFLAudioError, ValueError):
    """A submission of a notebook that is not an experiment."""


class RunFolderError(OpenFLAudioError, RuntimeError):
    """A folder that holds no experiment that could go on."""


class LackError(OpenFLAudioError, RuntimeError):
    """Something cannot be done for the moment. The message says what the director lacks."""


class EndedError(OpenFLAudioError, RuntimeError):
    """An experiment ended while something of it waited."""


class ConnectionRefusedByDirectorError(OpenFLAudioError, RuntimeError):
    """The director cannot be reached, or does not want this envoy."""


class DirectorRefusedError(OpenFLAudioError, RuntimeError):
    """The director answered, and does not want what was sent."""


class StartError(OpenFLAudioError, RuntimeError):
    """A process did not come up; the message has the end of its log."""


class SearchError(OpenFLAudioError, RuntimeError):
    """A search that cannot be run, or trials that failed; the message names the first."""


class WeightsError(OpenFLAudioError, ValueError):
    """Weights that a model cannot start from; the message names file and tensor."""


class PretrainedWeightsError(SettingsError):
    """Pretrained weights are neither in a folder nor in the hub's cache, and the hub cannot be reached."""


class DirectorError(OpenFLAudioError, RuntimeError):
    """The director cannot be reached, or refuses."""


class StatusError(OpenFLAudioError, RuntimeError):
    """A director's status cannot be had."""


class ExperimentFailedError(OpenFLAudioError, RuntimeError):
    """An experiment ended on an envoy's error, which is the message."""


class NotFiniteError(OpenFLAudioError, ValueError):
    """An aggregate of updates that does not fit into the model's types."""


class ArchiveError(OpenFLAudioError, ValueError):
    """An archive that must not be unpacked."""


class CertificateError(OpenFLAudioError, ValueError):
    """A certificate, a key or a name that cannot be used; the message is one sentence for the terminal."""


class UpdateRefusedError(OpenFLAudioError, ValueError):
    """An update that must not count. The message names the envoy and what is wrong."""


class TooLargeError(UpdateRefusedError):
    """An update of finite numbers that the others must be spared. It is left out; its sender need not do anything."""


class RoundFailedError(OpenFLAudioError, RuntimeError):
    """A round after which the experiment cannot go on. The message says why, and what would be right."""


class TooFewUpdatesError(RoundFailedError):
    """A round to which fewer contributed than its quorum."""


class UnknownMetricError(RoundFailedError):
    """The best model is chosen by a metric that no envoy reports."""


class TensorFormatError(OpenFLAudioError, ValueError):
    """Bytes that are not safetensors, or a tensor that safetensors cannot hold."""


class WireError(OpenFLAudioError, ValueError):
    """A message that is not what its call takes."""


class SimulationError(OpenFLAudioError, RuntimeError):
    """A simulation that cannot go on; the message says why."""


class DemoCorpusError(OpenFLAudioError):
    """The corpus cannot be made; the message is one sentence for the user."""


class TextError(OpenFLAudioError, ValueError):
    """A file is not text in an encoding that can be told; the message names file, line and byte."""
