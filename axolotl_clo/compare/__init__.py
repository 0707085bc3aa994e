"""`python -m axolotl_clo.compare`: train SFT, SFT then DPO, ORPO and CLO on the same rows, print one table.

Every method is a run of Axolotl's own on the starter rows, with the same parallel rows, the same number of
optimizer steps and the same trained parameters (attention). A step takes one parallel row's worth: for CLO one row,
which is two pairs; for DPO and ORPO two pairs; for SFT two sequences. SFT then DPO spends half of the steps on each.

Each method's learning rate is picked by the same search in the first language: three candidates train on seven eighths
of the training rows and are scored on every eighth. The criterion (`choose_learning_rate`) is what the methods are for
and no loss of theirs: answers in the prompt's language that do not repeat it, at most two of sixteen fewer than the
best, then the lowest target bits per byte, among the candidates whose English bits per byte rose by at most 5 % and
whose target's did not rise. The test rows are for the table alone.

Each run has a folder, `OUT/base`, `OUT/search/METHOD-LANG-RATE` or `OUT/runs/METHOD-LANG-SIZE-SEED`, with its Axolotl
YAML, its log and, written last, `scores.json`. A run whose scores were made with the same YAML is skipped.
"""
