"""The model card of a run for the Hugging Face Hub: README.md with a YAML header, from the files of the run."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from longtail.data.views import NUM_VIEWS
from longtail.evaluation.metrics import Evaluation
from longtail.reports.page import RunReport, class_size_table, expert_sections, results_table, routing_sections
from longtail.runs.model_file import ModelMetadata
from longtail.utils.format import duration, escape, percent, pluralize, rarest, shortened_list

METRIC_NAMES = {
    "accuracy": "Accuracy",
    "balanced": "Balanced accuracy (mean over classes)",
    "many": "Accuracy of many-shot classes",
    "medium": "Accuracy of medium-shot classes",
    "few": "Accuracy of few-shot classes",
}
"""Of the YAML header, by the name of the score"""

RIDE = (
    "X. Wang, L. Lian, Z. Miao, Z. Liu, S. X. Yu. *Long-tailed Recognition by Routing Diverse Distribution-Aware "
    "Experts.* ICLR 2021. [arXiv:2010.01809](https://arxiv.org/abs/2010.01809)"
)
LDAM = (
    "K. Cao, C. Wei, A. Gaidon, N. Arechiga, T. Ma. *Learning Imbalanced Datasets with Label-Distribution-Aware Margin "
    "Loss.* NeurIPS 2019. [arXiv:1906.07413](https://arxiv.org/abs/1906.07413)"
)
DECOUPLING = (
    "B. Kang, S. Xie, M. Rohrbach, Z. Yan, A. Gordo, J. Feng, Y. Kalantidis. *Decoupling Representation and Classifier "
    "for Long-Tailed Recognition.* ICLR 2020. [arXiv:1910.09217](https://arxiv.org/abs/1910.09217)"
)


@dataclass(frozen=True)
class ModelCard:
    """The content of a card."""

    repository: str
    """owner/name"""

    report: RunReport
    """The command and the paths of its environment are not published"""

    metadata: ModelMetadata

    license: str | None = None
    """Of the weights, an identifier of the Hub such as "mit"; None if none is stated"""

    def text(self) -> str:
        """Returns README.md."""
        header = yaml.safe_dump(self._header(), sort_keys=False, allow_unicode=True)
        sections = [
            f"# {escape(self.repository.partition('/')[2])}",
            self._introduction(),
            "## How to use",
            self._usage(),
            "## Results",
            *self._results(),
            *expert_sections(self._test),
            *self._routing(),
            "## Calibration",
            self._calibration(),
            "## Data",
            *self._data(),
            "## Training",
            self._training(),
            "## Limits",
            self._limits(),
            "## Licence",
            self._licence(),
            "## Citation",
            self._citation(),
        ]
        return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"

    @property
    def _test(self) -> Evaluation:
        return self.report.evaluation

    @property
    def _num_experts(self) -> int:
        return len(self._test.experts)

    def _header(self) -> dict[str, Any]:
        metrics = [
            {"type": "accuracy", "name": title, "value": round(value, 4)}
            for name, title in METRIC_NAMES.items()
            if (value := getattr(self._test, name)) is not None
        ]
        data = self.report.config.data.name
        result = {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"name": data, "type": data, "split": "test"},
            "metrics": metrics,
        }
        header = {
            "library_name": "longtail",
            "pipeline_tag": "image-classification",
            "tags": ["longtail", "long-tailed-recognition", "imbalanced-classification", "image-classification"],
            "model-index": [{"name": self.repository.partition("/")[2], "results": [result]}],
        }
        return header if self.license is None else {"license": self.license, **header}

    def _introduction(self) -> str:
        architecture, num_classes = self.metadata.architecture, len(self.metadata.class_names)
        experts = "one expert" if self._num_experts == 1 else f"{self._num_experts} experts"
        router = ", and a router that stops after as few experts as an image needs" if self.report.routing else ""
        return (
            f"An image classifier for {num_classes:,} classes of very different size (long-tailed data): a "
            f"`{architecture['name']}` with {experts}{router}. It was trained with longtail. Test accuracy, one run "
            f"with seed {self.report.config.seed}: **{percent(self._test.accuracy)} %** overall, "
            f"**{percent(self._test.balanced)} %** if every class has the same weight."
        )

    def _usage(self) -> str:
        return (
            f"```python\nimport longtail\n\nfor image in longtail.predict('hf://{self.repository}', 'photos/'):\n"
            f"    print(image.path, image.class_name, image.probability)\n```\n\n"
            f"In a terminal: `longtail predict hf://{self.repository} photos/`. Images are resized and cropped to "
            f"{self.metadata.image_size} x {self.metadata.image_size} pixels; the model file holds the preprocessing "
            "and the names of the classes. No code is run from this repository."
        )

    def _results(self) -> list[str]:
        results, groups = results_table(self.report.evaluations), class_size_table(self.report)
        return [
            results.markdown(),
            f"One run with seed {self.report.config.seed}; other seeds give slightly different results. "
            f"{self._test_notes()}{' '.join(results.notes)}",
            groups.markdown(),
            *groups.notes,
        ]

    def _test_notes(self) -> str:
        experts = "All experts are used" if self._num_experts > 1 else ""
        if self.report.routing:
            experts += "; the section Routing has the results with the router, with which the model predicts"
        views = NUM_VIEWS[self.report.config.evaluation.views]
        averaged = f"The outputs are averaged over {views} views of each image. " if views > 1 else ""
        return (f"{experts}. " if experts else "") + averaged

    def _routing(self) -> list[str]:
        routing = self.report.routing
        # Readers of the card do not know the machine on which the speed was measured.
        return routing_sections(replace(routing, images_per_second=None)) if routing else []

    def _calibration(self) -> str:
        test = self._test
        if test.ece is None:
            return "It was not measured."
        sentences = [
            "The calibration error (ECE) is the mean gap between the probability of the predicted class and the "
            f"accuracy, in percentage points. It is {percent(test.ece)} on the test images."
        ]
        if test.temperature != 1:
            sentences.append(
                f"Logits are divided by the temperature {test.temperature:.4g}, which the model file holds; "
                f"without it, the error is {percent(test.uncalibrated_ece)}."
            )
        return " ".join(sentences)

    def _data(self) -> list[str]:
        data, counts = self.report.config.data, self.report.class_counts
        largest, smallest = max(counts), min(counts)
        kind = {"folder": "A folder of images", "list": "Images of list files"}.get(
            data.name, f"The data set `{data.name}`"
        )
        subset = "" if data.imbalance == "none" else f", a long-tailed subset ({data.imbalance} profile)"
        return [
            f"{kind}{subset}: {sum(counts):,} training images of {pluralize(len(counts), 'class', 'classes')}. The "
            f"most common class has {largest:,} images, and the rarest {rarest(smallest, largest)}. The median "
            f"class has {np.median(counts):,.4g}.",
            f"Classes: {escape(shortened_list(self.metadata.class_names, 20), 2000)}. `config.json` has all of them, "
            "with their numbers of training images.",
        ]

    def _training(self) -> str:
        config, training = self.report.config, self.report.config.training
        if "converted_from" in self.report.environment:
            return "The weights were converted from a checkpoint of the original code of RIDE or RIDE-Swin."
        start = "pretrained weights" if config.model.pretrained else "random weights"
        parts = {
            "all": "all of the network was trained",
            "experts": "the trunk was frozen",
            "heads": "only the heads were trained",
            "lora": "low-rank adapters and heads were trained",
        }[training.trained_parts]
        sentences = [
            f"{pluralize(self.metadata.epoch, 'epoch')} with the `{config.loss.name}` loss, `{training.optimizer}` "
            f"with learning rate {training.learning_rate:g} and batches of {training.batch_size}, from {start}; "
            f"{parts}."
        ]
        if config.teacher:
            sentences.append("The experts were distilled from a teacher.")
        if self.metadata.classifier:
            sentences.append(f"The classifiers were then replaced (method `{self.metadata.classifier}`).")
        if seconds := self.report.environment.get("training_seconds"):
            device = escape(self.report.environment.get("device_name", "an unknown device"))
            sentences.append(f"Training took {duration(seconds)} on {device}.")
        version = self.report.environment.get("packages", {}).get("longtail")
        with_version = f" of longtail {version}" if version else ""
        sentences.append(f"`config.yaml` has all settings{with_version}.")
        return " ".join(sentences)

    def _limits(self) -> str:
        few = self._test.few
        rare = "" if few is None else f" Classes with few training images have {percent(few)} % accuracy here."
        return "\n".join(
            [
                f"- Every image is given one of the {len(self.metadata.class_names):,} classes, also an image of "
                "something else.",
                "- The results are for test images from the same source as the training images. Other cameras, places "
                "or class frequencies change them.",
                f"- The accuracy of single classes differs more than that of the groups.{rare}",
                "- Results of one run; differences of a few tenths of a point to other models may be chance.",
                "- Biases of the training images were not examined.",
            ]
        )

    def _licence(self) -> str:
        if self.license is None:
            return "The author states no licence for these weights. longtail itself is under the MIT licence."
        return f"Weights: {escape(self.license)}. longtail itself is under the MIT licence."

    def _citation(self) -> str:
        papers = [RIDE] if self._num_experts > 1 or self.report.config.loss.name == "ride" else []
        papers += [LDAM] if self.report.config.loss.name in ("ldam", "ride") else []
        papers += [DECOUPLING] if self.metadata.classifier else []
        listed = "\n".join(f"- {paper}" for paper in papers)
        where = "The documentation of longtail, page Citation, lists the papers of all methods and data sets."
        return f"Please cite the papers of the methods that the model uses:\n\n{listed}\n\n{where}" if papers else where
