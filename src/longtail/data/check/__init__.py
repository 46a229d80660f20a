"""Problems of a data set, found before training: damaged, blank and tiny images, copies, small classes."""
