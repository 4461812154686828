"""mmseg's data preprocessor, noting valid areas."""

from mmseg.models import SegDataPreProcessor
from mmseg.utils import stack_batch

from mmsmlp.valid_area import attach_valid_sizes, image_sizes


class ValidAreaSegDataPreProcessor(SegDataPreProcessor):
    """mmseg's ``SegDataPreProcessor``, with its own arguments, that notes on the batch what of it is image.

    It also takes test batches of images of different sizes, which mmseg's own refuses. Not in training with
    ``batch_augments``: images then fill the canvas for the backbone. Sliding-window inference cuts windows out of a
    batch; the backbone takes those as full.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise and pad a batch.

        Args:
            data (dict): ``inputs``, images (C, h, w) of any sizes or one tensor (N, C, h, w), and ``data_samples``.
            training (bool): Whether to pad the labels, too.

        Returns:
            dict: ``inputs`` (N, C, H, W) with a note of valid sizes, and ``data_samples``.
        """
        sizes = image_sizes(data["inputs"])
        if not training and len(set(sizes)) > 1:
            data = self._pad_test_images(data, sizes)
        else:
            data = super().forward(data, training)
        if not (training and self.batch_augments):
            attach_valid_sizes(data["inputs"], sizes)
        return data

    def _pad_test_images(self, data: dict, sizes: list[tuple[int, int]]) -> dict:
        """Pad test images of different sizes to one canvas, that of ``test_cfg``; mmseg cuts predictions to size."""
        images = []
        for image, (height, width) in zip(data["inputs"], sizes):
            normalised = super().forward({"inputs": [image], "data_samples": []})["inputs"][0]
            images.append(normalised[:, :height, :width])
        settings = self.test_cfg or {}
        canvas = {"size_divisor": settings.get("size_divisor") or 1}
        if settings.get("size"):  # of which images may be larger, in mmseg's own test batches as well
            canvas = {"size": [max(of_axis) for of_axis in zip(settings["size"], *sizes)]}
        inputs, padding = stack_batch(images, pad_val=self.pad_val, **canvas)
        samples = self.cast_data(data.get("data_samples"))
        for sample, meta in zip(samples or [], padding):
            sample.set_metainfo(meta)
        return {"inputs": inputs, "data_samples": samples}
