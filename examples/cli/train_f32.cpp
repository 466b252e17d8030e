// SPDX-License-Identifier: Apache-2.0
#include "train_impl.hpp"

template <>
std::optional<hymba::Validation> cli::train_with<hymba::arch::best>(const TrainRequest& request,
                                                                    const ReportStart& start,
                                                                    const ReportProgress& report) {
  return train_with_impl<hymba::arch::best>(request, start, report);
}
