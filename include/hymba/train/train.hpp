// SPDX-License-Identifier: Apache-2.0
//
// Everything of training. Not part of hymba.hpp: programs that only run models need none of it.
#pragma once

#include <hymba/train/curve.hpp>
#include <hymba/train/run_log.hpp>
#include <hymba/train/schedule.hpp>
#include <hymba/train/token_file.hpp>
#include <hymba/train/trainable.hpp>
#include <hymba/train/trained_parameters.hpp>
#include <hymba/train/trainer.hpp>
#include <hymba/train/training_batch.hpp>
#include <hymba/train/training_checkpoint.hpp>
#include <hymba/train/training_network.hpp>
#include <hymba/train/training_run.hpp>
#include <hymba/train/windows.hpp>
