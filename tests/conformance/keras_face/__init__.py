"""The same cases by the layers of hesitant.keras, on the backend that KERAS_BACKEND names: a process for each."""
