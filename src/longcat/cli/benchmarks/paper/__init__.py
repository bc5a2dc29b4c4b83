"""The report's figures, in small: what `longcat bench paper` trains, stores and writes down.

How a figure is written: one module `figure_NN.py` here, found by its name, that holds

1. `arms(scale)`: what is compared, as Arms: config.json fields, a width and TrainSettings fields
   over those of the scale, and free `options` for the figure's own run;
2. optionally `run(job)`: one training of one arm and seed, returning a JSON object. The default is
   `training.train_curve`; build on `job.trainer()` and `training.follow` rather than on a new loop;
3. `verdicts(results)`: sentences computed from the data, mostly `verdict.difference(...)`;
4. `body(results)`: Markdown after them, mostly `plot.plot(...)` and `page.table(...)`;
5. `FIGURE = Figure(number=NN, title=..., report=..., shows=..., arms=arms, ...)`;
6. a line in mkdocs.yml's nav once `longcat bench paper --figure NN` has written
   bench/results/paper-NN.json and docs/results/figure-NN.md, both of which are committed.

Every (figure, arm, seed) is stored under bench/cache/ as soon as it is done and found again by the
next call, which trains anew only what is missing or what was made from other settings.
"""
