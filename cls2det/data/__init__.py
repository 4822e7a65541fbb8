"""COCO-format data: annotations, images, augmentation, loaders."""
