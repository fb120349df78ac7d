"""Coordinators: consumer groups as pure state machines, each with the one service task around it."""
