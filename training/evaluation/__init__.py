"""What a training is worth: the honest harness, the scores it is made of, and the score that a sweep goes by.

`harness` judges a run or a configuration on unseen markets; `units` and `unit_run` score a core against the exact
limit, `risk` the M-RMS against fixed rules, `validation_score` one trial of a sweep.
"""
