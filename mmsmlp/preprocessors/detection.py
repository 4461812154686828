"""mmdet's data preprocessor, noting valid areas."""

from mmdet.models import BatchFixedSizePad, DetDataPreprocessor

from mmsmlp.valid_area import attach_valid_sizes, image_sizes


class ValidAreaDetDataPreprocessor(DetDataPreprocessor):
    """mmdet's ``DetDataPreprocessor``, with its own arguments, that notes on the batch what of it is image.

    Not in training with ``batch_augments`` other than ``BatchFixedSizePad``, which resize batches or mix their images:
    these then fill the canvas for the backbone. A ``Pad`` in the pipeline hides what is image and what is not; leave it
    out, this pads.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise and pad a batch.

        Args:
            data (dict): ``inputs``, images (C, h, w) of any sizes or one tensor (N, C, h, w), and ``data_samples``.
            training (bool): Whether to run the batch augments.

        Returns:
            dict: ``inputs`` (N, C, H, W) with a note of valid sizes, and ``data_samples``.
        """
        sizes = image_sizes(data["inputs"])
        data = super().forward(data, training)
        augments = (self.batch_augments or ()) if training else ()
        if all(isinstance(augment, BatchFixedSizePad) for augment in augments):
            attach_valid_sizes(data["inputs"], sizes)
        return data
