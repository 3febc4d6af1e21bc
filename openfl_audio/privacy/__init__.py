"""Privacy of what leaves a site: secure aggregation and differential privacy.

Secure aggregation: the director learns the sum of a round's updates, and none of them. The protocol is that of Bonawitz
et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning", ACM CCS) in its variant against a
malicious server, for tens of sites. `participant` and `coordinator` are both ends of it without input and output;
`transcript` has the messages that pass between them.

Differential privacy: `noise` and `clipping` are its means, `accounting` tells what they cost, `ledger` keeps what a
site has spent, and `site_level` has what a director that is trusted does with updates. Where it is not, `noisy_sum` has
what sites do instead, with `discrete_gaussian` and `rotation`. DP-SGD itself needs torch: it is
`openfl_audio.training.private_steps`.
"""
