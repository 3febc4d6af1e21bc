"""The exceptions of the engine, as one tree: each message is a sentence for the user who can mend its cause."""


class OpenFLAudioError(Exception):
    """Base of all exceptions that the engine raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        """Return what Jupyter shows of the error, which is its sentence: IPython looks for a method of this name."""
        return [f"{type(self).__name__}: {self}"]


class AddressError(OpenFLAudioError, ValueError):
    """A host or a port is none that can be reached."""


class SettingsError(OpenFLAudioError, ValueError):
    """A settings file is missing, unreadable, or says something that cannot be right."""


class FolderInUseError(OpenFLAudioError, ValueError):
    """A folder belongs to something with other settings; the message names the first difference."""


class FormatError(OpenFLAudioError, ValueError):
    """A later version wrote a file; the message names the file, both versions and what to do."""


class CallEndedError(OpenFLAudioError, RuntimeError):
    """A call was ended from elsewhere. The message says why."""


class SessionEndedError(OpenFLAudioError, RuntimeError):
    """A call of the page is made for nobody who is logged in."""


class MessageTooLargeError(OpenFLAudioError, ValueError):
    """A message that is not whole yet is larger than any that is taken."""


class TooManyCallsError(OpenFLAudioError, RuntimeError):
    """One certificate has as many calls open as it may."""


class EnvoyRefusedError(OpenFLAudioError, ValueError):
    """An envoy may not register, or is not known."""


class BrokenUploadError(OpenFLAudioError, RuntimeError):
    """An update did not arrive whole."""


class SubmissionError(OpenFLAudioError, ValueError):
    """A submission of a notebook is no experiment."""


class RunFolderError(OpenFLAudioError, RuntimeError):
    """A folder holds no experiment that can be resumed."""


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
    """A search cannot be run, or trials failed; the message names the first."""


class WeightsError(OpenFLAudioError, ValueError):
    """A model cannot start from weights; the message names file and tensor."""


class PretrainedWeightsError(SettingsError):
    """Pretrained weights are neither in a folder nor in the hub's cache, and the hub cannot be reached."""


class DirectorError(OpenFLAudioError, RuntimeError):
    """The director cannot be reached, or refuses."""


class StatusError(OpenFLAudioError, RuntimeError):
    """A director's status cannot be had."""


class DefinitionError(OpenFLAudioError, ValueError):
    """The arguments of an experiment do not fit together."""


class ExperimentExistsError(OpenFLAudioError, ValueError):
    """An experiment of the same name exists, and its settings are others."""


class SteeringError(OpenFLAudioError, RuntimeError):
    """An experiment cannot be resumed, deleted or changed as it is now; the message says why."""


class ExperimentFailedError(OpenFLAudioError, RuntimeError):
    """An experiment ended on an envoy's error, which is the message."""


class NotFiniteError(OpenFLAudioError, ValueError):
    """An aggregate of updates does not fit into the model's types."""


class ArchiveError(OpenFLAudioError, ValueError):
    """An archive must not be unpacked."""


class ApprovalError(OpenFLAudioError, RuntimeError):
    """A site's decision on an experiment cannot be made or read; the message names what is meant."""


class PolicyError(OpenFLAudioError, RuntimeError):
    """A site's policy does not let something leave; the message has no value of the site."""


class PrivacyError(OpenFLAudioError, RuntimeError):
    """Something would not be private as it says, or costs more than a budget holds; the message says which."""


class BudgetSpentError(PrivacyError):
    """A site's budget of privacy does not hold what a task costs. The message has no number, as others see it."""


class CertificateError(OpenFLAudioError, ValueError):
    """A certificate, a key or a name cannot be used; the message is one sentence for the terminal."""


class RecordError(OpenFLAudioError, ValueError):
    """A record, or the head of one, cannot be used; the message names the file or the owner."""


class UpdateRefusedError(OpenFLAudioError, ValueError):
    """An update must not count. The message names the envoy and what is wrong."""


class SecureAggregationError(OpenFLAudioError, RuntimeError):
    """A step of secure aggregation is refused, as what was sent breaks its rules. Nothing is unmasked by it."""


class BelowThresholdError(SecureAggregationError):
    """Too few envoys are left in an attempt of a secure round. Nothing was unmasked, and it may be tried again."""


class TooLargeError(UpdateRefusedError):
    """An update of finite numbers is too large to add to others. It is left out; its sender need not do anything."""


class RoundFailedError(OpenFLAudioError, RuntimeError):
    """The experiment cannot go on after a round. The message says why, and what would be right."""


class TooFewUpdatesError(RoundFailedError):
    """Fewer updates of a round count than its quorum."""


class UnknownMetricError(RoundFailedError):
    """The best model is chosen by a metric that no envoy reports."""


class TensorFormatError(OpenFLAudioError, ValueError):
    """Bytes are not safetensors, or safetensors cannot hold a tensor."""


class WireError(OpenFLAudioError, ValueError):
    """A message is not what its call takes."""


class SimulationError(OpenFLAudioError, RuntimeError):
    """A simulation cannot go on; the message says why."""


class DemoCorpusError(OpenFLAudioError):
    """The corpus cannot be made; the message is one sentence for the user."""


class TextError(OpenFLAudioError, ValueError):
    """A file is not text in an encoding that can be told; the message names file, line and byte."""
