"""Detection data in COCO's, VOC's and YOLO's layouts: annotations, images, augmentation, loaders."""
