"""Which samples are hard, and which of them may cross: scores, the gate, guaranteed thresholds, shares of a link, audits.

Pure numbers: no model, no gRPC, no telemetry, no clock and no randomness of its own. The edge imports
what runs on every frame (``scores``, ``gate``, ``costs``, ``deferral``, ``unusual``, ``demand``, ``sharing``, ``bucket``,
``audit``:
numpy and nothing else); what is fitted or promised (``risk``, ``threshold``, ``deferral_fit``, ``unusual_fit``) needs scipy and
runs in the cloud.
"""
